"""What one request asks for: the names of the APIs, each honoured or refused, made into the parts of a job."""
