"""The jobs that people ask for, made of the stages before: each command-line verb calls one of these."""
