"""Mixing: the distributions of experts and those of adaptive contexts, combined bit by bit into one for the next byte.

A byte is eight binary decisions from its highest bit on. An expert's distribution over bytes (a model's, say) gives
each decision a probability: the mass of the bytes with a 1 next over that of all that are left. A *context* (the last n
bytes, the word so far, …) gives one from counters of what followed it before. All of these, as logits ln(p/(1−p)), are
the inputs of several mixers: x·w, each with a set of weights that its *selector* chooses (by the bits so far, the last
byte, the match, …), and these are combined by weights once more. Two tables refine the result by contexts of their own.

- A context's counters lie in buckets of 15, one for each node of half a byte, found by a hash; they hold visits, a
  probability whose rate falls with the visits, and a *correction*: a logit that is learned on top of the first
  expert's, all contexts' together, by the error that is left. What visits and probability stand for is learned in turn,
  and is two inputs: the logit, and 2p − 1.
- *Contexts alone* predict beside a model as well, by weights of their own, which a primer teaches, too. That is one
  input more; and where they have cost less of late than all together, the result is theirs in part (``alone``).
- A *match* is the longest repetition of the last bytes; the byte that followed expects itself again.
- Everything learns online, by gradient steps on the coding cost of each bit, after the byte is known. All predictions
  of a byte are made from what was learned before it: they are a distribution over 256 bytes that is fixed before the
  byte is seen, and sums to 1 by construction.

The method is the PAQ family's (M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005;
logistic mixing, adaptive probability maps and indirect counters are described at mattmahoney.net/dc/dce.html); the
correction of a model's logit by hashed contexts is ours.

Results are the same bits on every machine and number of threads, given the experts' integer frequencies
(``frequencies``): counters are integers, fp32 is added up in one written order, logarithms come from tables.
"""
