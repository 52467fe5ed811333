"""What of DeepSpeed's own configuration a recipe may hold."""
