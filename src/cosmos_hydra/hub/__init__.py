"""What a config needs of the Hugging Face Hub: fetched, verified, and found again."""
