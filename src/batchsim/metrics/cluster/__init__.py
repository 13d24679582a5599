"""What clusters add to a summary: transfers of KV, tenants and classes, tiers, replicas that come and go."""
