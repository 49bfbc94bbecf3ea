"""The machine: devices, processes, files, checkpoints, logs."""
