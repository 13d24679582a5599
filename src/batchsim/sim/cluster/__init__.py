"""What makes replicas a cluster: who sends requests where, what carries KV, who comes and goes."""
