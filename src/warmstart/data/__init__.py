"""Tasks and mixtures: where examples come from, how they become rows and batches, how outputs are scored.

Semantics are SeqIO's; a batch is a pure function of (seed, epoch, window, k).
"""
