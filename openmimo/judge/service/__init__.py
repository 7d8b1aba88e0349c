"""The judge as an HTTP service, and the client that makes it look like a judge of one's own."""
