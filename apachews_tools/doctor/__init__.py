"""What ``apachews doctor`` looks at: checks that end in findings."""
