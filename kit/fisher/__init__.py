"""The Fisher information of a classifier's parameters: its diagonal, and products with its inverse."""
