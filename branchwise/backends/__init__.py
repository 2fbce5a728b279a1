"""Models: servers, the local engine, scripted ones, and the journal around any of them."""
