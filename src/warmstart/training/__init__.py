"""The loop and what it needs.

``config`` (what a user may set) · ``run`` (from a job to a bundle) · ``workload`` (what a kind of task brings),
``text_task``, ``speech_task`` · ``loop`` · ``learner`` (a model with all that trains it) · ``objective`` (of text),
``cross_entropy``, ``distillation``, ``ctc`` · ``optimizer``, ``adam``, ``adafactor``, ``schedule``, ``marian``
(its schedule), ``groups``, ``average``, ``lora``, ``precision`` · ``evaluation`` (of text), ``patience``,
``standing``, ``metrics``, ``samples`` · ``state`` (checkpoints), ``output``, ``resumption``,
``signals``, ``ranks`` (several processes) · ``rehearsal`` (the dry run).
"""
