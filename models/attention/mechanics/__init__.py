"""What several attention blocks are made of; each idea exists once.

``options`` what can be wrong with a block's options; ``tokens`` maps to tokens and heads; ``norms`` norms of few values.

``attend`` softmax attention, ``masks`` biases and masks in one, ``linear`` linear attention, ``channels`` attention of
channels to channels, ``windows`` cutting maps into windows, ``within`` attention in them, ``window_attention`` the same
with its linear layers, ``neighbors`` attention of every position to those near it, ``positions`` what is known of where
a token lies.

``strips`` a map seen along one axis at a time, ``dynamic`` convolutions whose kernels are computed, ``haar`` the wavelet
transform, ``scan`` the recurrence of state space models.
"""
