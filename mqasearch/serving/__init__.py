"""From a mask to something that serves: mask JSON, checkpoints, latency."""
