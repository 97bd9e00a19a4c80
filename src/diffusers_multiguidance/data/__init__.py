"""Builders of data sets with a known factor, and the filter that keeps their extremes."""
