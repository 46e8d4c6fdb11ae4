from swiftformer.cli import main

main()
