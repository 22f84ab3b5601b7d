"""Where a request's time went: phases, records of past requests, and what explains them."""
