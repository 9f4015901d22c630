"""The loop and what it needs.

``config`` (what a user may set) · ``run`` (from a job to a bundle) · ``loop`` · ``learner`` (a model with all that
trains it) · ``objective``, ``cross_entropy``, ``distillation`` · ``optimizer``, ``adam``, ``adafactor``, ``schedule``,
``groups``, ``average``, ``lora``, ``precision``, ``memory`` · ``evaluation``, ``patience``, ``metrics``, ``samples`` ·
``state`` (checkpoints), ``resumption``, ``signals`` · ``rehearsal`` (the dry run).
"""
