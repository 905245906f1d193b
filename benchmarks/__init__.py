"""Each benchmark compares ours with a peer in one run and prints the ratio. Nothing here is a test."""
