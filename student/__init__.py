"""The room of those who learn. Imports encoder and cache; never teachers, never transformers."""
