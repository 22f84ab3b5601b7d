"""The network: sizes and `config.json`, attention, decoder and MTP layers, vision encoder."""
