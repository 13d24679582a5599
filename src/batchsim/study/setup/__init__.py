"""From a configuration to what is simulated: hardware, KV memory, latency models, engines, what they cost."""
