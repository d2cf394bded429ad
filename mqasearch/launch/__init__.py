"""Many workers at once: processes of one machine, Ray, Slurm, Kubernetes."""
