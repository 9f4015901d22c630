"""Which array goes where: modes, the plan of a start, and its execution."""
