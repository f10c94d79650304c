<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Transport\Descriptors;
use PHPUnit\Framework\TestCase;

/**
 * The descriptors of streams, in a program that opens and closes its own files.
 */
final class DescriptorsTest extends TestCase
{
    protected function setUp(): void
    {
        if (!Descriptors::areKnown()) {
            self::markTestSkipped('there is no /proc');
        }
    }

    public function testDescriptorsAreFoundAlthoughTheProgramOpensAndClosesFiles(): void
    {
        mt_srand(6455); // reproducible
        $descriptors = new Descriptors();
        /** @var array<int, resource> $told */
        $told = [];
        $own = [];
        for ($round = 0; $round < 3000; $round++) {
            $isOpening = mt_rand(0, 99) < 55;
            if (mt_rand(0, 3) === 0) {
                if ($isOpening) {
                    $own[] = self::open();
                } elseif ($own !== []) {
                    fclose($own[$at = array_rand($own)]);
                    unset($own[$at]);
                }
            } elseif ($isOpening) {
                $stream = self::open();
                $fd = $descriptors->of($stream);
                self::assertNotNull($fd);
                self::assertArrayNotHasKey($fd, $told);
                self::assertSame(fstat($stream)['ino'] ?? 0, stat("/proc/self/fd/$fd")['ino'] ?? 1);
                $told[$fd] = $stream;
            } elseif ($told !== []) {
                $fd = array_rand($told);
                $descriptors->free($fd);
                fclose($told[$fd]);
                unset($told[$fd]);
            }
        }
        self::assertGreaterThan(50, count($told));
    }

    /**
     * Reading the directory takes time proportional to the clients: not once per client.
     */
    public function testDirectoryIsReadOnceForAFileThatTheProgramHadOpen(): void
    {
        $descriptors = new Descriptors();
        $streams = $numbers = [];
        for ($number = 0; $number < 200; $number++) {
            $streams[$number] = self::open();
            $numbers[$number] = $descriptors->of($streams[$number]);
        }
        for ($number = 50; $number < 150; $number++) {
            $descriptors->free((int) $numbers[$number]);
            fclose($streams[$number]);
        }
        $file = self::open(); // gets the lowest free number
        $streams[50] = self::open();
        self::assertNotNull($this->expected($descriptors, $streams[50]));
        fclose($file); // frees the number
        $streams[51] = self::open();
        self::assertNull($this->expected($descriptors, $streams[51]), 'there was nothing to search');
        self::assertNotNull($descriptors->of($streams[51]));
        for ($number = 0; $number < 250; $number++) {
            $streams[] = self::open();
            self::assertNotNull($this->expected($descriptors, end($streams)), "$number more were searched for");
        }
    }

    /**
     * @return resource
     */
    private static function open(): mixed
    {
        $pair = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        self::assertIsArray($pair);
        fclose($pair[1]);
        return $pair[0];
    }

    /**
     * Returns the descriptor if it is found without a search.
     *
     * @param resource $stream
     */
    private function expected(Descriptors $descriptors, mixed $stream): ?int
    {
        $expect = new \ReflectionMethod($descriptors, 'expect');
        $fd = @$expect->invoke($descriptors, fstat($stream));
        self::assertTrue($fd === null || is_int($fd));
        return $fd;
    }
}
