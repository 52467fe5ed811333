"""`fastmix fit`: a mixture from a swarm that somebody else trained, given as two tables."""
