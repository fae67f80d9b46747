"""Servers and programs for tests: S3 by ministack (fast) and Ceph (as real ones behave), a proxy that breaks things; PostgreSQL, MLflow;
Chromium, WordNet."""
