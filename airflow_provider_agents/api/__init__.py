"""The platform's HTTP API, usable alone: it imports nothing of Airflow."""
