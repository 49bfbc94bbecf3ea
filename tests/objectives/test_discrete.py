"""The discrete objective: its loss against the bound by brute force, its parts, its samplers."""
