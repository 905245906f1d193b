"""What several attention blocks are made of; each idea exists once.

``attend`` softmax attention, ``tokens`` maps to tokens and heads, ``windows`` cutting maps into windows,
``positions`` what is known of where a token lies, ``linear`` linear attention, ``channels`` attention of channels to
channels,
``strips`` a map seen along one axis at a time, ``neighbors`` attention of every position to those near it,
``window_attention`` attention within windows with its linear layers,
``dynamic`` convolutions whose kernels are computed, ``norms`` batch norm of pooled vectors.
"""
