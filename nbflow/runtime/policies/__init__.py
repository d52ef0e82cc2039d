"""What stands round every try of a step: circuit breakers, rate limits, bulkheads."""
