"""Teachers: large pre-trained recommenders that are asked once, offline. torch and transformers live here."""
