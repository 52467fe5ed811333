"""Laws: what a target's loss is on a mixture, fitted to a swarm; their choice, and the mixture that is best by one."""
