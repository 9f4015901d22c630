"""What arrays hold: statistics of one, differences of two, and of whole checkpoints. numpy only."""
