"""What is trained: losses, how their times are drawn and weighed."""
