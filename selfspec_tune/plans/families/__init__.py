"""One file for each family of decoders, or group of relatives: from configuration to plan, differences only."""
