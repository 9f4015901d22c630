"""The loop and what it needs: objective, optimizer, schedule, precision, checkpoints to resume from, metrics.

Files: ``config`` (what a user may set) · ``schedule`` · ``optimizer`` · ``objective`` · ``precision`` ·
``state`` (checkpoints) · ``metrics`` (``metrics.jsonl`` and TensorBoard) · ``loop`` (all of it, on one page).
"""
