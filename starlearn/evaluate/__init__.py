"""Does it save labels? Simulated rounds and their report."""
