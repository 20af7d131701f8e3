"""What a run is and how it ended: pure, and nothing of Airflow."""
