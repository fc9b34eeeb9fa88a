"""Test rows that training has seen."""
