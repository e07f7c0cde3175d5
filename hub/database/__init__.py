"""What Hutch knows: facility records, the catalogue of plans, and the instances with their history."""
