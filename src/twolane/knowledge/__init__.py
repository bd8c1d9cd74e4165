"""What people bring, made readable: files to documents."""
