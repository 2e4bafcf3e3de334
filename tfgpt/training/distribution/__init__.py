"""Training on several devices and hosts: strategies, clusters, start-up, collectives and restarts."""
