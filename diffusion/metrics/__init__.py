"""How good are the samples? Features of pictures, distances between sets of them, and the record of what was measured how."""
