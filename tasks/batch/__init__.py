"""What a run over many images needs beside the predictor: who does what, what is done, what it will cost."""
