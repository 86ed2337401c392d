"""The demo: a scanned page is read by one network on three tiers, one of which is killed half-way through."""
