"""What a draft can be exported as, one file a format."""
