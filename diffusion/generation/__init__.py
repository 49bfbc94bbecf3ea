"""From a trained model to samples, strips, edits and exports."""
