"""The networks, in torch; nothing else under `models` imports it."""
