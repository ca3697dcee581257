"""What the examples share: data, networks, training, tables and figures."""
