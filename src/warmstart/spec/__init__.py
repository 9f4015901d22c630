"""What arrays mean: rules that spell one framework's names and layouts in canonical ones, read both ways."""
