"""Storage servers for tests: ministack (fast), Ceph's S3 gateway (as real ones behave), and a proxy before either that breaks things."""
