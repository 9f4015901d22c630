"""What torch modules of several families are made of. Each function says the plain formula that it computes."""
